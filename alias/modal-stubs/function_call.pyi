from modal_nomad.function_call import *

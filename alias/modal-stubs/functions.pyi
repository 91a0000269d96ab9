from modal_nomad.functions import *

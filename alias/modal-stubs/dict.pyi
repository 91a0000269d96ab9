from modal_nomad.dict import *

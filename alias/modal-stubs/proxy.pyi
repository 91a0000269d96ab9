from modal_nomad.proxy import *

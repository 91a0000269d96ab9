from modal_nomad.mount import *

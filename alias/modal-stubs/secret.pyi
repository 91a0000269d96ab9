from modal_nomad.secret import *

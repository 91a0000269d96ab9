from modal_nomad.nomad import *

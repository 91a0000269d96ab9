from modal_nomad.gpu import *

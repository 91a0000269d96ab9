from modal_nomad.object import *

from modal_nomad.volume import *

from modal_nomad.image import *

from modal_nomad.schedule import *

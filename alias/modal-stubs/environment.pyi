from modal_nomad.environment import *

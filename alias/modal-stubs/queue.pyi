from modal_nomad.queue import *

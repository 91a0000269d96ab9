from modal_nomad.exception import *

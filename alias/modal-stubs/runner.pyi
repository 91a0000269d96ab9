from modal_nomad.runner import *

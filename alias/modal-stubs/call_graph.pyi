from modal_nomad.call_graph import *

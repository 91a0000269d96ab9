from modal_nomad.tunnel import *

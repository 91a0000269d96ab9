from modal_nomad.config import *

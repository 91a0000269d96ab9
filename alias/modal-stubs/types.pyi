from modal_nomad.types import *

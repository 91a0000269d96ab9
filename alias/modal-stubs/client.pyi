from modal_nomad.client import *

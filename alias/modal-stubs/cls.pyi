from modal_nomad.cls import *

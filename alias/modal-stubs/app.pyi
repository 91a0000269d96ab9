from modal_nomad.app import *

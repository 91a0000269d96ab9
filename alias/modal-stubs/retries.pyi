from modal_nomad.retries import *

from modal_nomad.scheduler_placement import *

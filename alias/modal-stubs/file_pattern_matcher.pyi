from modal_nomad.file_pattern_matcher import *

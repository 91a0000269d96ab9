from modal_nomad.network_file_system import *

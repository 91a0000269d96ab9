"""Container images: built where they are not known yet, each once however many ask for it."""

from modal_nomad.dispatcher.images.room import Images
from modal_nomad.dispatcher.images.settings import BuildSettings

__all__ = ["BuildSettings", "Images"]

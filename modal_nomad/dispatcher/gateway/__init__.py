"""The web gateway: requests from the outside go straight to containers, which it knows from the dispatcher.

It holds no state of the dispatcher's: what is served where (``routes``) and which containers there are
(``balancer``) is told to it, and it says how busy they are. So it may run in the dispatcher's process, or in
several of its own.
"""

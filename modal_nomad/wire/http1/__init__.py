"""HTTP/1.1 between the gateway, its clients and the containers: strict to read, plain to write.

What two readers of one message may understand differently is refused, and what is passed on is written anew:
so nobody can smuggle a request past the gateway. Standard library only: containers have it too.
"""

"""What crosses processes: message types, frames, value serialization, the client connection.

Standard library and cloudpickle only, and no syntax above Python 3.9: the container imports this
package inside the user's image.
"""

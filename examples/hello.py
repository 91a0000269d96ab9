"""The smallest app: one Function, called once and over many inputs.

modal-nomad run examples/hello.py --count 20
"""

import modal

app = modal.App("hello")


@app.function()
def square(x: int) -> int:
    print(f"squaring {x}")
    return x * x


@app.local_entrypoint()
def main(count: int = 10) -> None:
    """Square some numbers.

    Args:
        count: how many numbers.
    """
    print("7 squared is", square.remote(7))
    print(f"the first {count} squares sum to", sum(square.map(range(count))))

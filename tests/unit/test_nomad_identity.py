"""Who a container is, by the token that Nomad signed for its allocation."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from modal_nomad.engines._nomad_identity import AUDIENCE, NomadIdentities
from modal_nomad.exception import AuthError

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CHILD = "app-f/dispatch-ta-3mXk9-1700000000-0a1b2c3d"


class Nomad:
    """Nomad's answers, and how often it was asked for an allocation."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def jwks(self) -> dict[str, Any]:
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
        return {"keys": [{**key, "kid": "k1", "use": "sig", "alg": "RS256"}]}

    async def allocation(self, allocation_id: str) -> dict[str, Any]:
        self.asked.append(allocation_id)
        return {"JobID": CHILD if allocation_id == "a1" else "some-other-job"}


def token(allocation: str = "a1", *, key: Any = KEY, kid: str = "k1", **claims: Any) -> str:
    values = {"aud": AUDIENCE, "exp": time.time() + 60, "nomad_allocation_id": allocation, **claims}
    return jwt.encode(values, key, algorithm="RS256", headers={"kid": kid})


async def test_an_allocation_nobody_told_of_is_asked_for() -> None:
    nomad = Nomad()
    identities = NomadIdentities(nomad)  # type: ignore[arg-type]
    assert await identities.identify(token()) == "container:ta-3mXk9"
    assert nomad.asked == ["a1"]


async def test_one_that_the_event_stream_told_of_costs_no_question() -> None:
    nomad = Nomad()
    identities = NomadIdentities(nomad, {"a1": "ta-3mXk9"}.get)  # type: ignore[arg-type]
    assert await identities.identify(token()) == "container:ta-3mXk9"
    assert nomad.asked == []


@pytest.mark.parametrize(
    "bad",
    [
        {"kid": "unknown"},
        {"aud": "vault.io"},
        {"exp": 1.0},
        {"allocation": "a2"},
    ],
    ids=str,
)
async def test_what_nomad_did_not_sign_for_a_container_of_ours_is_refused(bad: dict[str, Any]) -> None:
    identities = NomadIdentities(Nomad(), {"a1": "ta-3mXk9"}.get)  # type: ignore[arg-type]
    with pytest.raises(AuthError):
        await identities.identify(token(**bad))


async def test_a_strangers_signature_is_refused() -> None:
    with pytest.raises(AuthError):
        await NomadIdentities(Nomad()).identify(token(key=OTHER))  # type: ignore[arg-type]

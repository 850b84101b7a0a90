"""What a party makes of the failure that another one announces."""

from tradeoff.engines.transport.errors import AuthError
from tradeoff.engines.transport.failures import announce, understand


def test_a_refused_certificate_is_blamed_on_its_owner() -> None:
    announced = announce(AuthError("TLS handshake failed", 1))
    assert announced == {"reason": "AuthError", "peer": 1}
    owner = understand(1, 0, announced, 1.0)("scope")
    assert str(owner) == "party 0: it refuses our certificate"
    bystander = understand(2, 0, announced, 1.0)("scope")
    assert isinstance(bystander, AuthError)
    assert str(bystander) == "party 1: party 0 refuses its certificate"

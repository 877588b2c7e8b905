"""The tests on each supported Python that this machine has.

One Python, some tests: .venv/bin/nox -s tests-3.13 -- -k lock
"""

import nox

nox.options.default_venv_backend = "venv"


@nox.session(python=["3.11", "3.12", "3.13"], reuse_venv=True)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after -- go to pytest."""
    place = session.virtualenv.location
    # The environment is the one that `make test` uses, made by the same rules.
    session.run("make", f"VENV={place}", f"PYTHON={place}/bin/python", "system", f"{place}/.installed", external=True)
    session.run("pytest", "-rs", *session.posargs)

import pytest


@pytest.fixture
def person(chromium):
    """A person at a browser, whose page must report no error."""
    context = chromium.new_context()
    found = context.new_page()
    found.complaints = []
    found.on("pageerror", lambda error: found.complaints.append(str(error)))
    yield found
    context.close()
    assert found.complaints == []

"""A wrong marker fails at collection, naming argument, allowed ones and test."""

import pytest


@pytest.mark.parametrize(
    ("marker", "lines"),
    [
        ("imagge='tiny'", ["*test_it: unknown argument 'imagge'*", "*allowed: image, hardware, network,*"]),
        ("'tiny'", ["*test_it: 'tiny' is given by position*", "*pytest.mark.vm(image='tiny')*"]),
        ("hardware='huge'", ["*hardware='huge'*unknown hardware model 'huge'*", "*known: micro, small*"]),
        ("network='wifi'", ["*network='wifi' is not valid*", "*local, bridged, nat, internal*"]),
        ("nodes=0", ["*nodes=0 is not valid*", "*a number from 1 to 200*"]),
        ("nodes={'DB': 1}", ["*role 'DB' is not a host name*"]),
        ("image=[]", ["*image=[[][]] is not valid*"]),
        ("image={'os_familly': 'debian'}", ["*unknown template key 'os_familly'*", "*allowed: os_family*"]),
        ("image={'name_matches': '('}", ["*name_matches is not valid*", "*a regular expression*"]),
        ("min_cores='2'", ["*min_cores='2' is not valid*"]),
        ("permanent='yes'", ["*permanent='yes' is not valid*"]),
    ],
)
def test_wrong_arguments(pytester, run_fake, marker, lines):
    """The collection fails; no machine is touched."""
    pytester.makepyfile(f"import pytest\n@pytest.mark.vm({marker})\ndef test_it(vm_instance): pass")
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(lines)


def test_group_without_nodes(pytester, run_fake):
    """`vm_group` without a number of nodes fails at collection and says how to give it."""
    pytester.makepyfile("def test_it(vm_group): pass")
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_it: vm_group is used*", "*nodes=2*"])

"""A cluster by roles, shared by the tests of this module and pristine before each of them."""

from pytest_vmfest import group_fixture

cluster = group_fixture(scope="module", image="tiny", nodes={"db": 1, "web": 2}, reset=True)


def test_nodes_know_each_other_by_name(cluster):
    """Every web server reaches the database by its name."""
    for web in cluster.role("web"):
        web.check_output("ping -c 1 -w 10 db-0")


def test_a_request_between_nodes(cluster):
    """A server on one node answers a client on another."""
    db = cluster["db-0"]
    db.check_output("mkdir -p /srv/www && echo 42 > /srv/www/answer && httpd -p 8000 -h /srv/www")
    answers = {web.check_output("wget -q -O - http://db-0:8000/answer") for web in cluster.role("web")}
    assert answers == {"42"}


def test_it_is_pristine_again(cluster):
    """The server of the test before is gone: neither its files nor its process are left."""
    assert not cluster["db-0"].run("ls /srv/www").ok
    assert not cluster["web-0"].run("wget -q -O - http://db-0:8000/answer").ok

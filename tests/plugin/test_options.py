"""Options, ini keys and environment variables, and their precedence."""

import pytest

SHOW_IMAGE = """
    def test_it(vm_image):
        assert vm_image.name == "{}"
"""


def test_default_image_is_tiny(pytester, run_fake):
    """Without any word about it, the image is tiny."""
    pytester.makepyfile(SHOW_IMAGE.format("tiny"))
    run_fake().assert_outcomes(passed=1)


def test_ini_key(pytester, run_fake):
    """The ini file's key sets the image."""
    pytester.makepyfile(SHOW_IMAGE.format("of-ini"))
    pytester.makeini("[pytest]\nvm_image = of-ini")
    run_fake().assert_outcomes(passed=1)


def test_environment_beats_ini(pytester, run_fake, monkeypatch):
    """The environment wins over the ini file."""
    pytester.makepyfile(SHOW_IMAGE.format("of-environment"))
    pytester.makeini("[pytest]\nvm_image = of-ini")
    monkeypatch.setenv("VMFEST_IMAGE", "of-environment")
    run_fake().assert_outcomes(passed=1)


def test_command_line_beats_environment(pytester, run_fake, monkeypatch):
    """The command line wins over the environment."""
    pytester.makepyfile(SHOW_IMAGE.format("of-command-line"))
    monkeypatch.setenv("VMFEST_IMAGE", "of-environment")
    run_fake("--vm-image", "of-command-line").assert_outcomes(passed=1)


def test_marker_beats_command_line(pytester, run_fake):
    """A marker wins over the command line."""
    pytester.makepyfile("import pytest\npytestmark = pytest.mark.vm(image='of-marker')" + SHOW_IMAGE.format("of-marker").replace("\n    ", "\n"))  # fmt: skip  # noqa: E501
    run_fake("--vm-image", "of-command-line").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vm-keep", "sometimes"], "*--vm-keep: 'sometimes' is not valid*"),
        (["--vm-hardware", "huge"], "*--vm-hardware: 'huge' is not valid*"),
        (["--vm-boot-timeout", "soon"], "*--vm-boot-timeout: 'soon' is not valid*"),
        (["-o", "vm_accel=warp"], "*ini key vm_accel: 'warp' is not valid*"),
        (["-o", "vm_durations=perhaps"], "*ini key vm_durations: 'perhaps' is not valid*"),
        (["--vm-driver", "hyperv"], "*--vm-driver: 'hyperv' is not valid*"),
    ],
)
def test_wrong_values_end_the_run_before_it_begins(pytester, run_fake, arguments, message):
    """A wrong value is a usage error that names where it was written."""
    pytester.makepyfile("def test_it(): pass")
    result = run_fake(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_an_unknown_driver_of_a_marker_is_a_setup_error_that_lists_the_known_ones(pytester, run_fake):
    """An unknown driver is told where a machine is needed, with those that there are."""
    pytester.makepyfile("import pytest\n@pytest.mark.vm(driver='hyperv')\ndef test_it(vm_instance): pass")
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*unknown driver 'hyperv'*", "*known: auto, virtualbox, qemu, fake*"])


def test_durations_are_shown(pytester, run_fake):
    """`--vm-durations` lists each test's phases."""
    pytester.makepyfile("def test_it(vm_instance): pass")
    result = run_fake("--vm-durations")
    result.stdout.fnmatch_lines(
        ["*vmfest: durations*", "*::test_it", "*image *", "*vm: clone *boot *network *teardown *"]
    )


def test_help_and_markers_and_fixtures_explain_themselves(pytester, run_fake):
    """`--help`, `--markers` and `--fixtures` tell a newcomer what there is."""
    assert run_fake("--help").stdout.str().count("--vm-") >= 8
    run_fake("--markers").stdout.fnmatch_lines(["@pytest.mark.vm(image=, hardware=*"])
    run_fake("--fixtures", "-v").stdout.fnmatch_lines_random(
        [
            "vm_instance*",
            "*fresh virtual machine for this test alone*",
            "vm_group*",
            "vm_image*",
            "vm_server*",
        ]
    )


def test_the_header_says_what_is_configured_and_used(pytester, run_fake):
    """The header names driver and store; after collection comes what the tests will run on."""
    pytester.makepyfile("def test_it(vm_instance): pass")
    run_fake().stdout.fnmatch_lines(
        ["vmfest: driver fake,*image tiny", "*collected 1 item*", "vmfest: fake*, store *"]
    )


def test_nothing_is_touched_without_machines(pytester, run_fake, tmp_path):
    """A run without machines, `--collect-only` and `--setup-plan` leave no store behind."""
    pytester.makepyfile("def test_it(): pass\ndef test_vm(vm_instance): pass")
    run_fake("--vm-driver", "qemu", "--collect-only")
    run_fake("--vm-driver", "qemu", "--setup-plan")
    run_fake("--vm-driver", "qemu", "-k", "test_it").assert_outcomes(passed=1, deselected=1)
    assert not (tmp_path / "vmfest-home").exists()

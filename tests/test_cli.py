"""The command `dnrt` runs the programs, which name themselves `dnrt NAME` in their messages."""

import sys

import pytest

from dnrt_jax import cli


@pytest.fixture
def dnrt(monkeypatch, capsys):
    """(exit status, standard output, standard error) of a command line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dnrt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("program", cli.PROGRAMS)
def test_every_program_has_its_help_under_its_own_name(dnrt, program):
    status, out, _ = dnrt(program, "--help")
    assert status == 0
    assert out.startswith(f"usage: dnrt {program} ")


def test_the_help_lists_every_program(dnrt):
    _, out, _ = dnrt("--help")
    assert all(f"\n  {program} " in out for program in cli.PROGRAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        ([], "required: PROGRAM"),
        (["train", "--workdri=x"], "see dnrt train --help"),
        (["predict", "image.png"], "see dnrt predict --help"),
        (["benchmark", "step", "--rounds=0"], "see dnrt benchmark step --help"),
    ],
)
def test_a_mistake_is_one_line(dnrt, arguments, message):
    status, _, err = dnrt(*arguments)
    (line,) = err.splitlines()
    assert status == 2
    assert line.startswith("error: ")
    assert message in line

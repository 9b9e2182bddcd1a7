"""`nanreplay completion`: what makes a shell complete a command line."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")
_HELP = """Print a script that lets SHELL complete commands, options, captures and names of fixes.

\b
bash: eval "$(nanreplay completion bash)"        in ~/.bashrc
zsh:  eval "$(nanreplay completion zsh)"         in ~/.zshrc
fish: nanreplay completion fish | source         in ~/.config/fish/config.fish
"""

_COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"
"""What a `~/.zshrc` without completion lacks: click's script calls `compdef` at once."""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script of a shell."""
    from click.shell_completion import get_completion_class

    from nanreplay.commands import COMPLETION, cli

    kind = get_completion_class(shell)
    assert kind is not None  # click knows each of SHELLS
    # click's own `source` of bash asks the bash of this machine for its version first
    completion = kind(cli, {}, "nanreplay", COMPLETION)
    script = completion.source_template % completion.source_vars()
    if shell == "fish":  # a value may hold commas, as `recorded,ops` does
        script = script.replace('string split ","', 'string split -m 1 ","')
    first, _, rest = script.partition("\n\n")
    click.echo(f"{first}\n\n{_COMPINIT}\n\n{rest}" if shell == "zsh" else script)

"""The command `python -m ihc2he.export BUNDLE out=FOLDER`."""

import logging
import sys

from ihc2he.errors import ConfigError, Ihc2heError, did_you_mean

HELP = """\
Write packages of a trained network that other programs open.

  python -m ihc2he.export BUNDLE out=FOLDER [formats=qupath,onnx] [author=NAME] [licence=MIT]
  python -m ihc2he.export BUNDLE hub=OWNER/NAME licence=MIT [public=true] [author=NAME] [out=FOLDER ...]

  BUNDLE     RUN/bundles/segmenter, RUN/bundles/g_ihc2he, a hub id such as owner/name@commit, or builtin
  out        folder for the packages
  formats    some of these; by default all that the bundle allows:
               qupath      a folder for QuPath's InstanSeg extension: image -> nuclei with classes
               bioimageio  a package of the BioImage Model Zoo: the network as ONNX and TorchScript
               onnx        one file, for onnxruntime and others
               torch       one file, for torch.export.load
  author     who made the weights
  licence    of the weights, an SPDX identifier
  hub        pushes the bundle and its card to this repository of the Hugging Face hub (hf auth login, or HF_TOKEN)
  public     true: everybody may see a new repository; otherwise it is private
"""
KEYS = ("out", "formats", "author", "licence", "hub", "public")


def main(arguments: list[str]) -> int:
    """Return the exit status of the command line: 0, or 2 after one line that says what is wrong."""
    if not arguments or any(a in ("-h", "--help", "help") for a in arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        bundle, values = parse(arguments)
        from ihc2he.export.hub import push
        from ihc2he.export.packages import export, facts

        about = {key: values[key] for key in ("author", "licence") if key in values}
        if "out" in values:
            formats = values.get("formats")
            print(facts(export(bundle, values["out"], formats.split(",") if formats else None, **about)))
        if "hub" in values:
            pushed = push(
                bundle, values["hub"], values.get("licence"), values.get("author"), values.get("public") == "true"
            )
            print(f"Pushed. Others use it as weights={pushed}")
    except (Ihc2heError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """Return the bundle and the values by key.

    >>> parse(["builtin", "out=packages"])
    ('builtin', {'out': 'packages'})

    Raises:
        ConfigError: for an unknown key, or without a bundle, or without both `out` and `hub`.
    """
    bundles = [given for given in arguments if "=" not in given]
    values = dict(given.split("=", 1) for given in arguments if "=" in given)
    for key in values:
        if key not in KEYS:
            msg = f"There is no key '{key}'.{did_you_mean(key, KEYS)}"
            raise ConfigError(msg)
    if len(bundles) != 1 or not (values.get("out") or values.get("hub")):
        msg = f"Expected one bundle and out=FOLDER, found '{' '.join(arguments)}'."
        raise ConfigError(msg)
    if values.get("public", "false") not in ("true", "false"):
        msg = f"public={values['public']}: expected true or false."
        raise ConfigError(msg)
    return bundles[0], values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

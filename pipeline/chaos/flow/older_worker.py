"""A worker as of before an upgrade that adds input topics: ``python -m`` this module.

It is the ordinary one, with a catalogue that has the first tier of retries and of inquiries alone:
it neither reads the others nor writes into them.
"""

from __future__ import annotations

import sys

from topics import catalogue


def main() -> int:
    catalogue.RETRY_MULTIPLES = catalogue.RETRY_MULTIPLES[:1]
    catalogue.INQUIRY_MULTIPLES = catalogue.INQUIRY_MULTIPLES[:1]
    # Not before: the policy's defaults are made of the catalogue where it is imported.
    from pipeline import worker

    return worker.main()


if __name__ == "__main__":
    sys.exit(main())

"""The check of annotations at run time: beartype, with an int as good as a float (PEP 484)."""

import beartype

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

"""A client is small: what a program pays that imports it alone."""

import subprocess
import sys

PROGRAM = """
import sys
import toolkit.client
print(sum(name.partition(".")[0] == "toolkit" for name in sys.modules), "pydantic" in sys.modules)
"""


def test_a_client_loads_few_modules_of_ours_and_no_pydantic():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    count, pydantic = ran.stdout.split()
    assert int(count) < 15 and pydantic == "False"

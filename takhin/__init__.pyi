from takhin import client as client
from takhin import errors as errors
from takhin import sync as sync
from takhin.client import *

__version__: str

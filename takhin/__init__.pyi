from takhin import embedded as embedded
from takhin import client as client
from takhin import errors as errors
from takhin import sync as sync
from takhin.client import *
from takhin.embedded import Broker as Broker

__version__: str

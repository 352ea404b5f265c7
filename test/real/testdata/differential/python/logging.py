import logging
logging.warning("to stderr %d", 1); logging.getLogger("x").error("named")
try: 1/0
except ZeroDivisionError: logging.exception("with traceback")

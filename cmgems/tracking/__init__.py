"""MLflow: a run, the journal that stands between it and the training, and a run's pictures."""

import logging
import os

# Before MLflow is imported, which reads some of them then.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # compute nodes often have no way out
# By default a call to a server that is away takes minutes; the journal's sender tries again anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")  # a server in maintenance may say an hour
# It prints the address of every run that ends, with the password in it; the summary has the address without.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# These log each failed attempt with a traceback; the sender logs the first of a row in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

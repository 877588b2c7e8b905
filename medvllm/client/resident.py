"""Finds a server of this user that answers as this process would."""

import logging

from medvllm.client.conditions import current_conditions
from medvllm.client.connection import LostError
from medvllm.client.local_client import LocalClient
from medvllm.client.resident_connection import ResidentConnection
from medvllm.client.server_record import ServerRecord, read_records
from medvllm.errors import MedVLLMError

logger = logging.getLogger(__name__)


class ResidentClient(LocalClient):
    """A client of a server of this user.

    Args:
        record: The record of the server.
    """

    def __init__(self, record: ServerRecord) -> None:
        super().__init__(record.url, api_key=record.key)
        self.process = record.process
        self._key = record.key

    def _connect(self) -> ResidentConnection:
        return ResidentConnection(self.url, self._options, self._key)

    def greet(self) -> None:
        """Connect to the server.

        Raises:
            LostError: It does not answer.
            MedVLLMError: It has not the key of its record.
        """
        connection = self._connection()
        assert isinstance(connection, ResidentConnection)
        connection.greet()


def find_resident(*, needs_same_answers: bool = True) -> ResidentClient | None:
    """Return a client of a server of this user that answers; None if there is none.

    A server of another version, catalogue or setting is not used, because a name may mean another model there.

    Args:
        needs_same_answers: Whether it must be one that answers as this process would.
    """
    try:
        records, conditions = list(read_records()), ""
        if records and needs_same_answers:
            conditions = current_conditions()
    except (OSError, MedVLLMError) as error:
        logger.info("no server is used: %s", error)
        return None
    for record in records:
        if needs_same_answers and record.conditions != conditions:
            logger.info("the server at %s has another version, catalogue or setting", record.url)
            continue
        client = ResidentClient(record)
        try:
            client.greet()
        except (MedVLLMError, LostError) as error:
            logger.info("the server at %s is not used: %s", record.url, error)
            client.close()
        else:
            return client
    return None

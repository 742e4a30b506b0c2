"""A broker inside a program, with TLS and authentication for those who reach it by its port."""

import asyncio
from pathlib import Path

import pytest

import takhin
from takhin.client import TLS, Acl
from tests.secured import Secured, replace


def test_others_have_to_say_who_they_are(tmp_path: Path) -> None:
    secured = Secured(tmp_path)

    async def scenario() -> None:
        settings = {key.removeprefix("--").replace("-", "__", 1).replace("-", "_"): value for key, value in zip(
            [each for each in secured.flags if each.startswith("--") and each != "--auth-keys"],
            [each for each in secured.flags if not each.startswith("--")], strict=True)}
        tls = TLS(ca=secured.authority.pem)
        async with takhin.Broker(listen="127.0.0.1:0", auth__keys=True, **settings) as broker, broker.client() as own:
            assert broker.address is not None
            await own.create_topic("orders")
            key, data = await own.access.create_key("reader")
            await own.access.create_acls([Acl(data.principal, "consume", "topic", "orders")])
            assert await own.access.list_acls() == [Acl("key:reader", "consume", "topic", "orders")]
            assert await own.access.list_keys() == [data]
            async with takhin.connect(broker.address, tls=tls) as stranger:
                with pytest.raises(takhin.Unauthenticated):
                    await stranger.list_topics()
                assert (await stranger.health()).status == "healthy"
            async with takhin.connect(broker.address, tls=tls, api_key=key) as reader:
                assert await reader.list_topics() == ["orders"]
                with pytest.raises(takhin.PermissionDenied):
                    await reader.delete_topic("orders")
                await own.access.revoke_key(data.id)
                with pytest.raises(takhin.Unauthenticated):
                    await reader.list_topics()
            # Files are read again here, too.
            async with takhin.connect(broker.address, tls=tls, token=secured.token()) as admin:
                assert await admin.list_topics() == ["orders"]
                replace(secured.directory / "jwks.json", (secured.directory / "jwks.json").read_bytes().replace(
                    b'"one"', b'"two"'))
                with pytest.raises(takhin.Unauthenticated):
                    while True:
                        await admin.list_topics()
                        await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(scenario(), 60))

/** What the classes of cases have in common: short names of the client's. */
abstract class Base {
  static final int MIB = Client.MIB;

  static void add(String name, Client.Case run) { Client.CASES.put(name, run); }

  static void expect(Object found, Object wanted, String what) { Client.expect(found, wanted, what); }

  static byte[] bytes(String text) { return Client.bytes(text); }

  static String text(byte[] bytes) { return Client.text(bytes); }

  static byte[] allBytes(int size) { return Client.allBytes(size); }

  static Client.Connection plain() { return Client.Connection.plain(); }
}

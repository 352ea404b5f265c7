import string, re, difflib, textwrap, unicodedata, stringprep, struct, codecs, pprint, reprlib, enum, json, csv, configparser, tomllib, html, xml.etree.ElementTree, xml.dom.minidom, xml.sax, email, mailbox, mimetypes, base64, binascii, quopri
print(len(vars(re)), json.dumps({"a": [1, None]}), tomllib.loads("a=1"), difflib.ndiff(["a"], ["b"]), list(csv.reader(["a,b"])))

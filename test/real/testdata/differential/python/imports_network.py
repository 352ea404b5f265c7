import urllib.request, urllib.parse, http.client, http.server, http.cookies, ftplib, poplib, imaplib, smtplib, uuid, socketserver, xmlrpc.client, ipaddress, asyncio, queue, sched, contextvars, _thread
print(urllib.parse.urlparse("http://a/b?c"), ipaddress.ip_network("10.0.0.0/8").num_addresses, uuid.uuid5(uuid.NAMESPACE_DNS, "x"))
